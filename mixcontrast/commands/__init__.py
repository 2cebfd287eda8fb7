"""What each command of `mixcontrast` does; `mixcontrast.cli` names them."""
