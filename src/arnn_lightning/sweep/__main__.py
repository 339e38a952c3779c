from arnn_lightning.sweep.jobs import run_handed_over

run_handed_over()
