"""How gunicorn runs the API: threads, since each client that waits for its picture holds one."""

import os

bind = f"{os.environ.get('API_ADDRESS', '127.0.0.1')}:{os.environ.get('API_PORT', '8080')}"
worker_class = "gthread"
workers = int(os.environ.get("API_PROCESSES", "1"))
threads = int(os.environ.get("API_THREADS", "320"))
worker_connections = 4 * threads
graceful_timeout = 20
# Which proxies' headers count is the API's own setting, TRUSTED_PROXIES; gunicorn would believe loopback.
forwarded_allow_ips = ""
# The control socket lies in the home folder, where a second inpaintd would take it over.
control_socket_disable = True
proc_name = "inpaintd-api"
