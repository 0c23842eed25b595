"""Services that mirror a ledger: Weights & Biases, TensorBoard, CSV files and MLflow.

The ledger is the source of truth. A tracker runs in its own thread (`delivery`), so its loss or a server that does not
answer does not stop a stage.
"""
