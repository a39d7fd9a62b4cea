"""The trainer: reads committed datasets, never makes corpus rows. The only package that needs torch and DeepSpeed.

Importing it sets defaults of the environment that torch reads as it is loaded (launch/libraries.py).
"""

from training.launch import libraries

libraries.prepare()
