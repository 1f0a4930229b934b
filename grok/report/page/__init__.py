"""`grok report`: runs as one page to look at, from their records only."""
