#!/usr/bin/env python3
"""The health check of the store: exits with an error until it answers."""

import urllib.request

urllib.request.urlopen("http://127.0.0.1:9000/moto-api/", timeout=4)
