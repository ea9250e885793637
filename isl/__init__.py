"""In silico labeling: predicts fluorescent labels from transmitted-light microscopy z-stacks."""

__version__ = '0.1.0'
