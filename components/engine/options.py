"""Values and help texts of the options that every step with an executor has."""

AUTO, THREADS, PROCESSES, RAY = "auto", "threads", "processes", "ray"
EXECUTORS = (AUTO, THREADS, PROCESSES, RAY)
EXECUTOR_HELP = (
    "what does the work where no ray_address is given: threads of the step's process, processes of this machine, or "
    "Ray started on it; auto: threads where they are done before others have started, else processes for clean and Ray "
    "for resize"
)
RAY_ADDRESS_HELP = (
    "where Ray runs: an existing cluster, by its client (ray://host:10001), from one of its nodes (auto, host:6379), "
    "or for resize as a job that it runs (http://host:8265), while clean stays on this machine (default: in this "
    "process)"
)
