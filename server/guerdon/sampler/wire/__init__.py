"""The sampler's protocol: messages in, messages out."""
