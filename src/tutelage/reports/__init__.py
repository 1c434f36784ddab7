"""Tables that compare runs, and the tests behind them."""
