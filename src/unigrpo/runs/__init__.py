"""Run folders: begun, gone on with, locked, stopped, evaluated; for the commands and for Python alike."""
