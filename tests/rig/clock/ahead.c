/* The machine's wall clock, so many seconds ahead, as a preload library.
 *
 * FINIAL_CLOCK_AHEAD  seconds
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>

int clock_gettime(clockid_t clock, struct timespec *now) {
    int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    const char *ahead = getenv("FINIAL_CLOCK_AHEAD");
    int result = real(clock, now);
    if (result == 0 && ahead && clock == CLOCK_REALTIME) now->tv_sec += atol(ahead);
    return result;
}
