"""Studies: questions of the literature asked of one's own data, found by file name.

A study is ``run(cfg, paths, quick) -> Study``: it trains what it needs (finished trainings are
kept, an interrupted study goes on where it stopped), measures it over seeds, and says in plain
sentences whether this data agrees with the paper. ``headwater study NAME`` and the Dagster asset
of that name write its rows (parquet), pictures and sentences.
"""
