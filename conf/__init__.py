from arnn_lightning import config as config  # registers the resolver of config.yaml
