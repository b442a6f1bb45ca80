"""The server's side: what the nodes say."""
