"""A file of users in, a file of recommendations out: streaming, in flat memory, restartable."""
