"""Tables from results, one module per set of them; benchmarks/table.py puts them where they belong."""
