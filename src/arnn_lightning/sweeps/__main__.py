from arnn_lightning.sweeps.jobs import run_handed_over

run_handed_over()
