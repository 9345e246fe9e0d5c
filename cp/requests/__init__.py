"""What may be asked of ``*CP`` and ``*LOG``: each verb is a function of the path it came by and its arguments."""
