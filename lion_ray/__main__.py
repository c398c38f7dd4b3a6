from lion_ray.cli import main

# The guard matters: engines spawn processes that import this module again.
if __name__ == "__main__":
    main()
