# keeper.sh DIR HOME TASKS_SIZE HIDDEN…: makes a machine of the namespaces it was started in, and keeps them until its input
# ends. The machine has a home, a /tmp and perhaps a small disk of its own, and none of the HIDDEN programs.
set -eu
dir=$1 home=$2 size=$3
shift 3

# What is in DIR has the same path inside and outside.
mount --bind "$dir/home" "$home"
mount --bind "$dir/tmp" /tmp
[ "$size" = 0 ] || mount -t tmpfs -o "size=$size,mode=0700" tmpfs "$dir/tasks"

if [ $# -gt 0 ]; then
    # Taken away and not only covered: a shell that looks for a program finds nothing at all.
    mkdir "$dir/upper" "$dir/work"
    mount -t overlay overlay -o "lowerdir=/usr/bin,upperdir=$dir/upper,workdir=$dir/work" /usr/bin
    for program; do rm "/usr/bin/$program"; done
fi
ip link set lo up
echo ready
exec cat
