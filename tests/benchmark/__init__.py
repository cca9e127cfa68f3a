"""The benchmark: corpus, endpoint, contestants and registry, process, check, table, and what is measured with them."""
