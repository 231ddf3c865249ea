"""Which scikit-learn estimator stands for which algorithm, and the hyperparameters it takes, as JSON Schemas.

The table is static so that a definition is checked when it is saved, where scikit-learn is not installed. A test
compares it with the estimators' own ``get_params`` and constraints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Schema = Mapping[str, Any]


def _integer(least: int, most: int | None = None) -> Schema:
    return {"type": "integer", "minimum": least} | ({} if most is None else {"maximum": most})


def _above(least: float) -> Schema:
    return {"type": "number", "exclusiveMinimum": least}


def _between(least: float, most: float, *, open_ends: bool = False) -> Schema:
    low, high = ("exclusiveMinimum", "exclusiveMaximum") if open_ends else ("minimum", "maximum")
    return {"type": "number", low: least, high: most}


def _one_of(*values: Any) -> Schema:
    return {"enum": list(values)}


def _or(*schemas: Schema) -> Schema:
    return {"anyOf": list(schemas)}


_NULL: Schema = {"type": "null"}
_FLAG: Schema = {"type": "boolean"}
_NOT_NEGATIVE: Schema = {"type": "number", "minimum": 0}
_SHARE: Schema = {"type": "number", "exclusiveMinimum": 0, "maximum": 1}
_WEIGHTS: Schema = {"type": "object", "additionalProperties": _above(0)}
_CLASS_WEIGHT: Schema = _or(_one_of("balanced"), _WEIGHTS, _NULL)

_FOREST: dict[str, Schema] = {
    "n_estimators": _integer(1, 100_000),
    "max_depth": _or(_integer(1), _NULL),
    "max_features": _or(_integer(1), _SHARE, _one_of("sqrt", "log2"), _NULL),
    "max_leaf_nodes": _or(_integer(2), _NULL),
    "max_samples": _or(_integer(1), _above(0), _NULL),
    "min_samples_leaf": _or(_integer(1), _between(0, 1, open_ends=True)),
    "min_samples_split": _or(_integer(2), _SHARE),
    "min_impurity_decrease": _NOT_NEGATIVE,
    "min_weight_fraction_leaf": _between(0, 0.5),
    "bootstrap": _FLAG,
    "ccp_alpha": _NOT_NEGATIVE,
    "oob_score": _FLAG,
}
_BOOSTING: dict[str, Schema] = {
    "max_iter": _integer(1, 100_000),
    "learning_rate": _above(0),
    "max_depth": _or(_integer(1), _NULL),
    "max_leaf_nodes": _or(_integer(2), _NULL),
    "max_bins": _integer(2, 255),
    "max_features": _SHARE,
    "min_samples_leaf": _integer(1),
    "l2_regularization": _NOT_NEGATIVE,
    "early_stopping": _or(_one_of("auto"), _FLAG),
    "n_iter_no_change": _integer(1),
    "validation_fraction": _or(_between(0, 1, open_ends=True), _integer(1), _NULL),
    "tol": _NOT_NEGATIVE,
}
_NETWORK: dict[str, Schema] = {
    "hidden_layer_sizes": _or(_integer(1), {"type": "array", "items": _integer(1), "minItems": 1, "maxItems": 50}),
    "activation": _one_of("identity", "logistic", "tanh", "relu"),
    "solver": _one_of("adam", "sgd", "lbfgs"),
    "alpha": _NOT_NEGATIVE,
    "batch_size": _or(_one_of("auto"), _integer(1)),
    "learning_rate": _one_of("constant", "adaptive", "invscaling"),
    "learning_rate_init": _above(0),
    "power_t": _NOT_NEGATIVE,
    "max_iter": _integer(1),
    "shuffle": _FLAG,
    "tol": _NOT_NEGATIVE,
    "momentum": _between(0, 1),
    "nesterovs_momentum": _FLAG,
    "early_stopping": _FLAG,
    "validation_fraction": {"type": "number", "minimum": 0, "exclusiveMaximum": 1},
    "beta_1": {"type": "number", "minimum": 0, "exclusiveMaximum": 1},
    "beta_2": {"type": "number", "minimum": 0, "exclusiveMaximum": 1},
    "epsilon": _above(0),
    "n_iter_no_change": _integer(1),
}
_SUPPORT: dict[str, Schema] = {
    "C": _above(0),
    "kernel": _one_of("linear", "poly", "rbf", "sigmoid"),
    "degree": _integer(0),
    "gamma": _or(_one_of("scale", "auto"), _NOT_NEGATIVE),
    "coef0": {"type": "number"},
    "shrinking": _FLAG,
    "tol": _above(0),
    "cache_size": _above(0),
    "max_iter": _integer(-1),
}


@dataclass(frozen=True, slots=True)
class Estimator:
    """One estimator: where it is imported from, what it takes, and what a file of it may hold."""

    module: str
    class_name: str
    parameters: Mapping[str, Schema]
    scaled: bool = False
    """Whether number columns are brought to mean 0 and deviation 1: distances and gradients need it, trees don't."""
    target_scaled: bool = False
    """Whether the target of a regression is scaled too, and predictions scaled back."""
    grows_by: str = ""
    """The parameter that ``warm_start`` can raise in steps with the same result, so that fitting reports progress."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    types: frozenset[str] = frozenset()
    """Types that a saved model of it holds, besides those of every pipeline."""


_FOREST_TREE = "sklearn.tree._tree.Tree"
_BOOSTING_TYPES = frozenset(
    {
        "sklearn.ensemble._hist_gradient_boosting.binning._BinMapper",
        "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
        "sklearn._loss.link.Interval",
        "numpy.random._generator.Generator",
        "numpy.random._pcg64.PCG64",
    }
)
_LINKS = {"HalfBinomialLoss": "LogitLink", "HalfMultinomialLoss": "MultinomialLogit", "HalfPoissonLoss": "LogLink",
          "HalfGammaLoss": "LogLink", "HalfSquaredError": "IdentityLink", "AbsoluteError": "IdentityLink",
          "PinballLoss": "IdentityLink"}  # fmt: skip


def _losses(*names: str) -> frozenset[str]:
    return frozenset(
        name
        for loss in names
        for name in (
            f"sklearn._loss.loss.{loss}",
            f"sklearn._loss._loss.Cy{loss}",
            f"sklearn._loss.link.{_LINKS[loss]}",
        )
    )


_NETWORK_TYPES = frozenset(
    {
        "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
        "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
        "sklearn.preprocessing._label.LabelBinarizer",
        "numpy.random.mtrand.RandomState",
    }
)
_KMEANS_INIT = _one_of("k-means++", "random")

ESTIMATORS: Mapping[tuple[str, str], Estimator] = {
    ("classification", "random_forest"): Estimator(
        "sklearn.ensemble", "RandomForestClassifier",
        {**_FOREST, "criterion": _one_of("gini", "entropy", "log_loss"),
         "class_weight": _or(_one_of("balanced", "balanced_subsample"), _WEIGHTS, _NULL)},
        grows_by="n_estimators",
        types=frozenset({"sklearn.ensemble._forest.RandomForestClassifier",
                         "sklearn.tree._classes.DecisionTreeClassifier", _FOREST_TREE}),
    ),
    ("classification", "svm"): Estimator(
        "sklearn.svm", "SVC", {**_SUPPORT, "class_weight": _CLASS_WEIGHT}, scaled=True,
        types=frozenset({"sklearn.svm._classes.SVC"}),
    ),
    ("classification", "neural_network"): Estimator(
        "sklearn.neural_network", "MLPClassifier", _NETWORK, scaled=True,
        types=_NETWORK_TYPES | {"sklearn.neural_network._multilayer_perceptron.MLPClassifier"},
    ),
    ("classification", "gradient_boosting"): Estimator(
        "sklearn.ensemble", "HistGradientBoostingClassifier",
        {**_BOOSTING, "loss": _one_of("log_loss"), "class_weight": _CLASS_WEIGHT},
        aliases={"n_estimators": "max_iter"},
        types=_BOOSTING_TYPES | _losses("HalfBinomialLoss", "HalfMultinomialLoss") | {
            "sklearn.preprocessing._label.LabelEncoder",
            "sklearn.ensemble._hist_gradient_boosting.gradient_boosting.HistGradientBoostingClassifier"},
    ),
    ("classification", "linear"): Estimator(
        "sklearn.linear_model", "LogisticRegression",
        {"C": _above(0), "class_weight": _CLASS_WEIGHT, "dual": _FLAG, "fit_intercept": _FLAG,
         "intercept_scaling": _above(0), "l1_ratio": _or(_between(0, 1), _NULL), "max_iter": _integer(0),
         "solver": _one_of("lbfgs", "liblinear", "newton-cg", "newton-cholesky", "sag", "saga"), "tol": _NOT_NEGATIVE},
        scaled=True, types=frozenset({"sklearn.linear_model._logistic.LogisticRegression"}),
    ),
    ("regression", "random_forest"): Estimator(
        "sklearn.ensemble", "RandomForestRegressor",
        {**_FOREST, "criterion": _one_of("squared_error", "absolute_error", "poisson")},
        grows_by="n_estimators",
        types=frozenset({"sklearn.ensemble._forest.RandomForestRegressor",
                         "sklearn.tree._classes.DecisionTreeRegressor", _FOREST_TREE}),
    ),
    ("regression", "svm"): Estimator(
        "sklearn.svm", "SVR", {**_SUPPORT, "epsilon": _NOT_NEGATIVE}, scaled=True, target_scaled=True,
        types=frozenset({"sklearn.svm._classes.SVR"}),
    ),
    ("regression", "neural_network"): Estimator(
        "sklearn.neural_network", "MLPRegressor", {**_NETWORK, "loss": _one_of("squared_error")},
        scaled=True, target_scaled=True,
        types=_NETWORK_TYPES | {"sklearn.neural_network._multilayer_perceptron.MLPRegressor"},
    ),
    ("regression", "gradient_boosting"): Estimator(
        "sklearn.ensemble", "HistGradientBoostingRegressor",
        {**_BOOSTING, "loss": _one_of("squared_error", "absolute_error", "gamma", "poisson", "quantile"),
         "quantile": _or(_between(0, 1), _NULL)},
        aliases={"n_estimators": "max_iter"},
        types=_BOOSTING_TYPES | {
            "sklearn.ensemble._hist_gradient_boosting.gradient_boosting.HistGradientBoostingRegressor"}
        | _losses("HalfSquaredError", "AbsoluteError", "HalfGammaLoss", "HalfPoissonLoss", "PinballLoss"),
    ),
    ("regression", "linear"): Estimator(
        "sklearn.linear_model", "Ridge",
        {"alpha": _NOT_NEGATIVE, "fit_intercept": _FLAG, "max_iter": _or(_integer(1), _NULL), "positive": _FLAG,
         "solver": _one_of("auto", "svd", "cholesky", "lsqr", "sparse_cg", "sag", "saga", "lbfgs"),
         "tol": _NOT_NEGATIVE},
        scaled=True, types=frozenset({"sklearn.linear_model._ridge.Ridge"}),
    ),
    ("clustering", "kmeans"): Estimator(
        "sklearn.cluster", "KMeans",
        {"n_clusters": _integer(1), "init": _KMEANS_INIT, "n_init": _or(_one_of("auto"), _integer(1)),
         "max_iter": _integer(1), "tol": _NOT_NEGATIVE, "algorithm": _one_of("lloyd", "elkan")},
        scaled=True, types=frozenset({"sklearn.cluster._kmeans.KMeans"}),
    ),
    ("clustering", "dbscan"): Estimator(
        "sklearn.cluster", "DBSCAN",
        {"eps": _above(0), "min_samples": _integer(1), "leaf_size": _integer(1), "p": _or(_NOT_NEGATIVE, _NULL),
         "metric": _one_of("euclidean", "manhattan", "chebyshev", "cosine", "minkowski"),
         "algorithm": _one_of("auto", "ball_tree", "kd_tree", "brute")},
        scaled=True, types=frozenset({"sklearn.cluster._dbscan.DBSCAN"}),
    ),
    ("clustering", "gaussian_mixture"): Estimator(
        "sklearn.mixture", "GaussianMixture",
        {"n_components": _integer(1), "covariance_type": _one_of("full", "tied", "diag", "spherical"),
         "init_params": _one_of("kmeans", "k-means++", "random", "random_from_data"), "n_init": _integer(1),
         "max_iter": _integer(0), "reg_covar": _NOT_NEGATIVE, "tol": _NOT_NEGATIVE},
        scaled=True, types=frozenset({"sklearn.mixture._gaussian_mixture.GaussianMixture"}),
    ),
}  # fmt: skip


def hyperparameter_problems(
    model_type: str, algorithm: str, hyperparameters: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """Return ``(pointer, sentence)`` for every name the estimator lacks and every value it would refuse."""
    from jsonschema import Draft202012Validator

    estimator = ESTIMATORS[model_type, algorithm]
    found: list[tuple[str, str]] = []
    for name, value in hyperparameters.items():
        schema = estimator.parameters.get(estimator.aliases.get(name, name))
        if schema is None:
            found.append((f"/{name}", _unknown(name, algorithm, estimator)))
        elif name in estimator.aliases and estimator.aliases[name] in hyperparameters:
            found.append((f"/{name}", f"{name!r} is another name of {estimator.aliases[name]!r}; give one of them."))
        elif not Draft202012Validator(schema).is_valid(value):
            found.append((f"/{name}", f"{value!r} is no value of {name!r}: expected {_spell(schema)}."))
    return found


def _unknown(name: str, algorithm: str, estimator: Estimator) -> str:
    if name == "random_state":
        return "'random_state' is set by the parameter 'seed' of the task."
    if name == "n_jobs":
        return "'n_jobs' follows from the cores ('cpu') of the task."
    names = ", ".join(sorted([*estimator.parameters, *estimator.aliases]))
    return f"{algorithm} ({estimator.class_name}) has no hyperparameter {name!r} here; it has {names}."


def _spell(schema: Schema) -> str:
    """Say in words what a schema of this file allows."""
    if "anyOf" in schema:
        return " or ".join(_spell(part) for part in schema["anyOf"])
    if "enum" in schema:
        return "one of " + ", ".join(map(repr, schema["enum"])) if len(schema["enum"]) > 1 else repr(schema["enum"][0])
    words = {"null": "null", "boolean": "true or false", "array": "a list of whole numbers above 0",
             "object": "an object of class → weight"}  # fmt: skip
    if schema["type"] in words:
        return words[schema["type"]]
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = " and ".join(f"{sign} {schema[key]}" for key, sign in signs.items() if key in schema)
    return f"{'a whole number' if schema['type'] == 'integer' else 'a number'} {bounds}".rstrip()
