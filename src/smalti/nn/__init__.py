"""Network parts. Inside a network a video is `t b c h w`: time first, so that a span of time is a view, and every layer
that does not mix time is an ordinary 2-D layer on t*b images. Only `causal` mixes time."""
