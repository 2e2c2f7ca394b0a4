"""The server: requests over HTTP to answers, and what is told about them."""
