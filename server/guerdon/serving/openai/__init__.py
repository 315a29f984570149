"""OpenAI's API: what every service that speaks it shares."""
