"""`python -m detkds_evolver`: drives every search of the database until SIGTERM."""

from detkds_evolver.main import main

if __name__ == "__main__":
    main()
