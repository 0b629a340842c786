"""The cut of a build is one number for the whole corpus."""

from __future__ import annotations

from pathlib import Path

from tests.tasks.test_build import build, write_web


def test_a_cut_is_taken_over_the_whole_and_not_shard_by_shard(tmp_path: Path) -> None:
    """Fondant's T-MARS pipeline took its percentile in each partition: another sharding kept other rows."""
    kept, cuts = [], []
    for shards, rows in ((2, 60), (6, 20)):
        web = write_web(tmp_path / f"web-{shards}", shards, rows)
        built = build(web, str(tmp_path / f"out-{shards}"), synthetic=(shards, rows), share=0.7)
        assert built.results["corpus-scatter-real"].summary.accounts.outcomes["not_sampled"] > 10
        kept.append(sorted((row["id"], row["text"]) for row in built.rows()))
        cuts.append(built.run.summary.mix["realised_synthetic_share"])
    assert kept[0] == kept[1] and cuts[0] == cuts[1]
