"""One page that shows a model at work: the trace, the page, the loopback server."""
