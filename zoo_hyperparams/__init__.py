"""RL-Zoo hyperparameters, one YAML file per algorithm; shipped as the package ``sb3_wng.zoo_hyperparams``."""
