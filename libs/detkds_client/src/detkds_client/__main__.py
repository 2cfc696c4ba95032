"""`python -m detkds_client` is `detkds`."""

from detkds_client.cli import main

if __name__ == "__main__":
    main()
