"""Several ways to edit, compared on the same clips: a benchmark, its methods, tables and votes."""
