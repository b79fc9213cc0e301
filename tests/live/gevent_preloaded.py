"""gunicorn's configuration for an application that is there before its workers are forked.

Django has to be imported after the threads have become greenlets.
"""

from gevent import monkey

monkey.patch_all()

preload_app = True
