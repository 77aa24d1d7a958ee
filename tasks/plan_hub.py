"""What the hub's cache on this machine and the hub itself have of a model, without fetching it.

In: a model's name and revision. Out: a local snapshot, or an answer of the hub: the files, their bytes, whether this
login may read them. Patience is short, and a hub that has not answered once is not asked again.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from thinkdiff.schemas.artifact import Model
from thinkdiff.tasks.models import UNREAD

PATIENCE = 5.0  # seconds
State = Literal["there", "gated", "absent", "silent"]


@dataclass(frozen=True)
class Answer:
    """What the hub said. reason: why not, in a few words; files: their bytes by name; commit: what `main` is now."""

    state: State
    reason: str = ""
    files: Mapping[str, int] = field(default_factory=dict)
    commit: str = ""
    licence: str | None = None


def cached_snapshot(model: Model) -> Path | None:
    """The folder of a model in the hub's cache, None where it was never fetched."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model.name, revision=model.revision, local_files_only=True))
    except (OSError, ValueError):
        return None


class Hub:
    """Asked for one model after the other; `silent` is why it does not answer, once it has not."""

    def __init__(self) -> None:
        self.silent: str | None = None

    def look(self, model: Model) -> Answer:
        """What the hub has of a model, and whether this machine's login may read it."""
        from huggingface_hub import errors

        if self.silent is not None:
            return Answer("silent", self.silent)
        try:
            return self._look(model)
        except errors.GatedRepoError:
            return Answer("gated", "it gated, and this login without access")
        except errors.RevisionNotFoundError:
            return Answer("absent", f"no revision {model.revision} of it on the hub")
        except (errors.RepositoryNotFoundError, errors.HFValidationError):
            return Answer("absent", "no such model on the hub, or one that this login may not see")
        except errors.OfflineModeIsEnabled:
            self.silent = "the hub not to be asked (HF_HUB_OFFLINE)"
            return Answer("silent", self.silent)
        except Exception as error:  # every transport has its own errors, and all mean the same here
            self.silent = f"no answer of the hub ({type(error).__name__})"
            return Answer("silent", self.silent)

    def _look(self, model: Model) -> Answer:
        from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url
        from huggingface_hub.utils import get_token

        info = HfApi().model_info(model.name, revision=model.revision, timeout=PATIENCE, files_metadata=True)
        files = {
            file.rfilename: file.size or 0
            for file in info.siblings or ()
            if not any(fnmatch.fnmatch(file.rfilename, form) for form in UNREAD)
        }
        probe = min((name for name in files if name.endswith(".json")), key=lambda name: (name.count("/"), len(name)))
        url = hf_hub_url(model.name, probe, revision=info.sha)
        get_hf_file_metadata(url, token=get_token() or False, timeout=PATIENCE)
        licence = info.card_data.license if info.card_data else None
        named = getattr(info.card_data, "license_name", None) if info.card_data else None
        return Answer("there", "", files, info.sha or "", named or (str(licence) if licence else None))
