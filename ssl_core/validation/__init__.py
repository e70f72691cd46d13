"""Expectations as code, one file per suite; Great Expectations judges them (``_gx``)."""
