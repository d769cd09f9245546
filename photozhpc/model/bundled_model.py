"""The models that come with the package."""

from pathlib import Path

from photozhpc.errors import CheckpointError

_FOLDER = Path(__file__).parent / "bundled"
# Survey -> the survey that its bundled model was trained on: the same bands on the same grid.
_TRAINED_ON = {"roman-sim": "roman-sim", "roman-l3": "roman-sim"}


def bundled_checkpoint(survey_name: str) -> Path:
    """Return the path of the model that comes with the package for a survey.

    Raises:
        CheckpointError: there is none; one has to be trained.
    """
    path = _FOLDER / f"pita-{_TRAINED_ON.get(survey_name)}.safetensors"
    if not path.is_file():
        raise CheckpointError(
            f"no model comes with photozhpc for survey '{survey_name}'; train one with "
            f"'photozhpc train' and pass --checkpoint"
        )
    return path
