"""What this library's parts are set beside: contests by kind, each with a peer, three sizes and a check."""
