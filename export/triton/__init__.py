"""A model repository for the Triton inference server, made of an artifact."""
