"""The errors a user can meet. One root, so that one ``except`` catches them all."""


class FxpruneError(Exception):
    """Root of every error fxprune raises on purpose."""


class TraceError(FxpruneError):
    """The model cannot be captured by ``torch.export`` with these inputs."""


class InputError(FxpruneError):
    """Inputs of a size, rank, dtype or value that a graph was not captured for."""


class ConfigError(FxpruneError):
    """A configuration has a field that does not exist, or is not what its file should hold."""


class RuleError(FxpruneError):
    """A rule for an op is registered twice or returns axes that do not fit the value."""


class GroupError(FxpruneError):
    """No such group, or the group cannot be pruned."""


class CalibrationError(FxpruneError):
    """Calibration data is missing, too short or gives a non-finite loss."""


class CriterionError(FxpruneError):
    """A criterion is configured wrongly or gives non-finite scores."""


class SelectionError(FxpruneError):
    """A pruning ratio or a budget that cannot be met."""


class VocabularyError(FxpruneError):
    """A tokenizer cannot lose tokens, or not so many."""


class DepthError(FxpruneError):
    """A residual branch or block that cannot be removed, or too few of them."""


class CostError(FxpruneError):
    """A cost cannot be counted exactly, or not at the sizes asked for."""


class PlanError(FxpruneError):
    """A plan is damaged or does not fit the model."""


class RewriteError(FxpruneError):
    """The graph cannot be rewritten to the smaller sizes."""


class OracleError(FxpruneError):
    """The smaller model does not compute what the original computes without the removed units."""


class CheckpointError(FxpruneError):
    """A saved folder is damaged, incomplete or belongs to another model."""


class ShrinkError(FxpruneError):
    """A config cannot say what is left of a transformers model."""


class ServeError(FxpruneError):
    """An engine cannot run a model, or cannot say what a plan leaves of it."""


class ProcessError(FxpruneError):
    """Processes that are to share the work cannot be connected, or one of them has ended."""


class ModelError(FxpruneError):
    """A model cannot be found, built or fetched."""


class EvaluationError(FxpruneError):
    """What is to be measured cannot be: a task, its data, or a model that predicts no text."""


class RecoveryError(FxpruneError):
    """Training data, options or a run of recovery that cannot go on."""


class FxpruneWarning(UserWarning):
    """Something was lost that the user may want to know (for example symbolic sizes)."""
