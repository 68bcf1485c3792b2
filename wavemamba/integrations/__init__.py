"""What other libraries see of this one."""
