"""Makes ``small_models`` importable from every test folder (pytest puts this folder on the path)."""
