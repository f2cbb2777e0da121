"""The end-to-end rig: real TURN clients against a server, in network namespaces."""
