"""Products and registry to DVC's remote: what must outlive this machine."""

import os
from typing import Any

import dagster as dg

from ._dvc import with_repo

REMOTE = "HEADWATER_REMOTE"  # the variable that names another remote than core.remote


def push(repo: Any, name: str) -> dict[str, Any]:
    """Upload what a remote of DVC lacks; how many files, and where they went.

    Raises:
        dg.Failure: there is no such remote, it does not answer, or some files were not taken.
    """
    from dvc.exceptions import DvcException, UploadError

    known = repo.config["remote"]
    if name not in known:
        text = f"DVC has no remote '{name}' (it has: {', '.join(known) or 'none'})"
        raise dg.Failure(f"{text}: dvc remote add", allow_retries=False)
    url = str(known[name]["url"])
    try:
        return {"pushed": int(repo.push(remote=name)), "remote": url}
    except UploadError as error:
        text = f"{error.amount} files were not taken by {url}; run again, the others are there"
        raise dg.Failure(text) from error
    except (DvcException, OSError) as error:
        raise dg.Failure(f"{url}: {error}") from error


@dg.op(pool="io", description="`dvc push`: uploads what the remote lacks.")
def push_products(context: dg.OpExecutionContext) -> dict[str, Any]:
    """The counts are in the run's log and in the output's metadata."""

    def work(repo: Any) -> dict[str, Any]:
        return push(repo, os.environ.get(REMOTE) or repo.config["core"].get("remote", ""))

    done: dict[str, Any] = with_repo(work)
    context.log.info(f"{done['pushed']} files went to {done['remote']}")
    context.add_output_metadata(done)
    return done
