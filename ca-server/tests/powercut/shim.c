/* A model of a power cut, as a preload library. What a file holds when it is synced is copied to a shadow folder; after
 * SIGKILL the shadow folder is the disk. Only fsync and fdatasync count. sync_file_range does not: it is no barrier.
 *
 * FINIAL_POWERCUT_ROOT    the folder that is watched (absolute)
 * FINIAL_POWERCUT_SHADOW  where synced content goes
 * FINIAL_POWERCUT_DEAF    if set, fdatasync does not count either: the control
 * FINIAL_POWERCUT_FAIL    if set to n, the n-th fdatasync fails with EIO, and a later one leaves a file "again"
 * FINIAL_POWERCUT_SHORT   if set, a write is interrupted, the next one stops halfway, the next is done, and so on; each halved
 *                         one leaves a file "short.unfinished"
 * FINIAL_POWERCUT_AGAIN   if set to n, the n-th write fails with EAGAIN
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;
static long data_syncs, writes;

/* The shadow of a path, or 0 if it is not below the root. */
static int shadow_of(const char *path, char *shadow) {
    const char *root = getenv("FINIAL_POWERCUT_ROOT"), *to = getenv("FINIAL_POWERCUT_SHADOW");
    if (!root || !to || strncmp(path, root, strlen(root)) != 0 || path[strlen(root)] != '/') return 0;
    return snprintf(shadow, PATH_MAX, "%s%s", to, path + strlen(root)) < PATH_MAX;
}

/* Whether a file lies below the root. */
static int is_watched(int fd) {
    char link[64], path[PATH_MAX], shadow[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return shadow_of(path, shadow);
}

/* How much of a write is done: less than all of it, or -1 with an error, if it is this write's turn. */
static ssize_t allowed(int fd, size_t count) {
    const char *halved = getenv("FINIAL_POWERCUT_SHORT"), *again = getenv("FINIAL_POWERCUT_AGAIN");
    if ((!halved && !again) || !is_watched(fd)) return count;
    long number = __sync_add_and_fetch(&writes, 1);
    if (again && number == atol(again)) {
        errno = EAGAIN;
        return -1;
    }
    if (halved && number % 3 == 1) {
        errno = EINTR;
        return -1;
    }
    if (!halved || number % 3 == 0 || count < 2) return count;
    char note[PATH_MAX];
    snprintf(note, sizeof note, "%s/short.unfinished", getenv("FINIAL_POWERCUT_SHADOW"));
    close(open(note, O_WRONLY | O_CREAT, 0600));
    return count / 2;
}

ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t at) {
    ssize_t (*real)(int, const void *, size_t, off64_t) = dlsym(RTLD_NEXT, "pwrite64");
    ssize_t some = allowed(fd, count);
    return some < 0 ? some : real(fd, bytes, some, at);
}

static ssize_t put(int fd, const void *bytes, size_t count) {
    ssize_t (*real)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
    return real(fd, bytes, count);
}

ssize_t write(int fd, const void *bytes, size_t count) {
    ssize_t some = allowed(fd, count);
    return some < 0 ? some : put(fd, bytes, some);
}

static void fail(const char *what) {
    perror(what);
    _exit(97);
}

static int move(const char *from, const char *to) {
    int (*real)(const char *, const char *) = dlsym(RTLD_NEXT, "rename");
    return real(from, to);
}

static void keep(int fd) {
    char link[64], path[PATH_MAX], shadow[PATH_MAX], unfinished[PATH_MAX + 16];
    struct stat facts;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return;
    path[length] = 0;
    if (!shadow_of(path, shadow) || fstat(fd, &facts) != 0 || !S_ISREG(facts.st_mode)) return;
    char reader[64];
    snprintf(reader, sizeof reader, "/proc/self/fd/%d", fd);
    int from = open(reader, O_RDONLY | O_CLOEXEC);
    if (from < 0) fail("powercut: open");
    snprintf(unfinished, sizeof unfinished, "%s.unfinished", shadow);
    int to = open(unfinished, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (to < 0) fail("powercut: create");
    char buffer[1 << 16];
    ssize_t got;
    while ((got = read(from, buffer, sizeof buffer)) > 0)
        if (put(to, buffer, got) != got) fail("powercut: write");
    if (got < 0) fail("powercut: read");
    close(from);
    close(to);
    /* All or nothing, also when the process is killed in here. */
    if (move(unfinished, shadow) != 0) fail("powercut: rename");
}

int fsync(int fd) {
    int (*real)(int) = dlsym(RTLD_NEXT, "fsync");
    pthread_mutex_lock(&one_at_a_time);
    int result = real(fd);
    if (result == 0) keep(fd);
    pthread_mutex_unlock(&one_at_a_time);
    return result;
}

int fdatasync(int fd) {
    int (*real)(int) = dlsym(RTLD_NEXT, "fdatasync");
    const char *failing = getenv("FINIAL_POWERCUT_FAIL");
    pthread_mutex_lock(&one_at_a_time);
    data_syncs++;
    int result = 0;
    if (failing && data_syncs == atol(failing)) {
        errno = EIO;
        result = -1;
    } else if (failing && data_syncs > atol(failing)) {
        char note[PATH_MAX];
        snprintf(note, sizeof note, "%s/again", getenv("FINIAL_POWERCUT_SHADOW"));
        close(open(note, O_WRONLY | O_CREAT, 0600));
    } else {
        result = real(fd);
        if (result == 0 && !getenv("FINIAL_POWERCUT_DEAF")) keep(fd);
    }
    pthread_mutex_unlock(&one_at_a_time);
    return result;
}

/* A new name counts at once. That is kind, but only whole, synced files get one here. */
int rename(const char *from, const char *to) {
    char old[PATH_MAX], new[PATH_MAX];
    int result = move(from, to);
    if (result == 0 && shadow_of(from, old) && shadow_of(to, new)) move(old, new);
    return result;
}
