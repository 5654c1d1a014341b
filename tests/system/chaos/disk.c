/* Preloaded into the log's server: a slow disk, a failing disk, another wall clock.
 *
 * CHAOS_SYNC_MS       each fsync and fdatasync takes this much longer
 * CHAOS_FAIL_FILE     while this file exists, they fail with EIO
 * CHAOS_DIE_FILE      while this file exists, the process kills itself once they are done
 * CHAOS_CLOCK_FILE    holds seconds that are added to the wall clock
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static int after(int result) {
  const char *file = getenv("CHAOS_DIE_FILE");
  if (file && access(file, F_OK) == 0) kill(getpid(), SIGKILL);
  return result;
}

static int meddle(void) {
  const char *ms = getenv("CHAOS_SYNC_MS"), *file = getenv("CHAOS_FAIL_FILE");
  if (ms) {
    long n = atol(ms);
    struct timespec pause = {n / 1000, n % 1000 * 1000000L};
    nanosleep(&pause, NULL);
  }
  if (file && access(file, F_OK) == 0) {
    errno = EIO;
    return -1;
  }
  return 0;
}

int fsync(int fd) {
  static int (*real)(int);
  if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
  return meddle() ? -1 : after(real(fd));
}

int fdatasync(int fd) {
  static int (*real)(int);
  if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
  return meddle() ? -1 : after(real(fd));
}

static long offset_s(void) {
  const char *file = getenv("CHAOS_CLOCK_FILE");
  char text[32] = {0};
  int fd = file ? open(file, O_RDONLY) : -1;
  if (fd < 0) return 0;
  if (read(fd, text, sizeof text - 1) < 0) text[0] = 0;
  close(fd);
  return atol(text);
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  static int (*real)(struct timeval *, void *);
  if (!real) real = (int (*)(struct timeval *, void *))dlsym(RTLD_NEXT, "gettimeofday");
  int failed = real(now, zone);
  now->tv_sec += offset_s();
  return failed;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
  int failed = real(clock, now);
  if (clock == CLOCK_REALTIME) now->tv_sec += offset_s();
  return failed;
}

time_t time(time_t *out) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (out) *out = now.tv_sec;
  return now.tv_sec;
}
