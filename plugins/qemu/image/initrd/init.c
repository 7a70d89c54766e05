/*
 * The first program of a guest that is booted directly (QEMU's -kernel and -initrd).
 *
 * It loads the modules in /mod in the order of their names, mounts the device named by root= as
 * ext4 and starts systemd from there. Debian's own initrd does the same with shell scripts and
 * udev, at the price of a billion emulated instructions.
 *
 * Only root=/dev/... and "ro" are read from the kernel's command line.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define ROOT_WAIT_MS 10000

/* Says what failed where the operator looks (the serial log) and lets the kernel panic. */
static void die(const char *what)
{
    dprintf(1, "init: %s: %s\n", what, strerror(errno));
    sleep(2);
    _exit(1);
}

static void open_console(void)
{
    int fd = open("/dev/console", O_RDWR);
    if (fd < 0)
        return;
    dup2(fd, 0);
    dup2(fd, 1);
    dup2(fd, 2);
    if (fd > 2)
        close(fd);
}

/* Reads the root device and whether it is to be mounted read-only. */
static void read_command_line(char *root, size_t root_size, unsigned long *mount_flags)
{
    static char line[4096];
    int fd = open("/proc/cmdline", O_RDONLY);
    if (fd < 0)
        return;
    ssize_t length = read(fd, line, sizeof line - 1);
    close(fd);
    if (length <= 0)
        return;
    for (char *word = strtok(line, " \n"); word; word = strtok(NULL, " \n")) {
        if (!strncmp(word, "root=/dev/", 10))
            snprintf(root, root_size, "%s", word + 5);
        else if (!strcmp(word, "ro"))
            *mount_flags |= MS_RDONLY;
    }
}

static void load_modules(void)
{
    struct dirent **entries;
    int count = scandir("/mod", &entries, NULL, alphasort);
    for (int i = 0; i < count; i++) {
        char path[512];
        if (!strstr(entries[i]->d_name, ".ko"))
            continue;
        snprintf(path, sizeof path, "/mod/%s", entries[i]->d_name);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        /* Not fatal: what is missing shows when the root device does not appear. */
        if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST))
            dprintf(1, "init: %s: %s\n", path, strerror(errno));
        if (fd >= 0)
            close(fd);
    }
}

int main(void)
{
    char root[128] = "/dev/vda2";
    unsigned long mount_flags = 0;

    mkdir("/proc", 0755);
    mkdir("/dev", 0755);
    mkdir("/root", 0755);
    mount("proc", "/proc", "proc", 0, NULL);
    mount("dev", "/dev", "devtmpfs", 0, "mode=755");
    open_console();
    read_command_line(root, sizeof root, &mount_flags);
    load_modules();

    for (int waited_ms = 0; waited_ms < ROOT_WAIT_MS && access(root, F_OK); waited_ms++)
        usleep(1000);
    if (mount(root, "/root", "ext4", mount_flags, ""))
        die(root);

    umount2("/proc", MNT_DETACH);
    mount("/dev", "/root/dev", NULL, MS_MOVE, NULL);
    if (chdir("/root") || mount(".", "/", NULL, MS_MOVE, NULL) || chroot(".") || chdir("/"))
        die("switching to the root file system");
    execl("/sbin/init", "/sbin/init", (char *)NULL);
    die("/sbin/init");
}
