"""Turns encoded items into logits: packed where it can, padded where it must.

    settings          how to compute (light: no torch)
    plan              where each token of a packed row stands and what it sees (no torch)
    attention         attention over such a row, for any architecture of `transformers`
    attention_record  what a model asks of its attention
    kernels           whether the attention kernel that serves computes what it should
    heads             hidden states to logits
    architecture      what differs between architectures
    engine            the packed and the padded engine
    probes            which of them a checkpoint may be served with

Import from the modules: importing this package alone loads nothing heavy.
"""
