"""Dagster assets, one file per stage: each runs the stage through DVC and shows what came out."""
