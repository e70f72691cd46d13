"""Dagster definitions: what runs, when, and on what occasion."""
