"""What an author of plugins is given: a new package, its checks, and advice.

Nothing in it is public; its two ways in are ``hatbus new-plugin`` and ``hatbus plugins check``.
"""
