/*
 * The crew: the threads that read requests from the kernel, and how they take turns.
 *
 * As long as hits come from memory, `wanted` readers are enough (docs/decisions/0012).
 *
 * A reader that waits for the disk answers nobody. So before it does, it sees to it that `wanted` others read requests: it
 * calls those that are parked, or starts new ones, up to `most`. When it is back it reads on; there may be more than
 * wanted then, and while reads go to the disk that is right: they need no calling. A reader that has met no disk for a
 * while, when there are more than wanted, parks. When all of the crew wait for the disk, the daemon gets the rest.
 *
 * Most reads of the disk need none of that: disk.c submits them, and its own threads answer.
 */
#include "hits.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define READER_NICE -15
#define WAITING_READERS 32 /* that wait for the disk at once: the queue depth that a fast SSD wants */

static void *reader_loop(void *argument);

/* Under crew.mutex. */
static bool start_reader(struct lane *lane) {
    struct crew *crew = &lane->crew;
    uint32_t index = crew->started;
    struct reader *self = index < crew->most ? calloc(1, sizeof *self) : NULL;
    if (!self)
        return false;
    self->lane = lane;
    self->device = index % lane->device_count;
    self->counters = &lane->board->counters[index];
    self->request = malloc(REQUEST_SIZE);
    self->pages = aligned_alloc(PAGE_SIZE, PAGE_SIZE + MAX_READ);
    self->hit = (struct hit){
        .device = self->device, .chunks = self->chunks, .runs = self->runs, .reply = self->pages + PAGE_SIZE};
    if (!self->request || !self->pages || start_thread(&self->thread, reader_loop, self)) {
        free(self->request);
        free(self->pages);
        free(self);
        return false;
    }
    crew->readers[crew->started++] = self;
    return true;
}

/* Call or start somebody to read requests. False: there is nobody. */
static bool call_reader(struct lane *lane) {
    struct crew *crew = &lane->crew;
    pthread_mutex_lock(&crew->mutex);
    bool is_there = crew->parked > crew->called || start_reader(lane);
    if (is_there) {
        crew->called++;
        atomic_fetch_add(&crew->reading, 1);
        pthread_cond_signal(&crew->turn);
    }
    pthread_mutex_unlock(&crew->mutex);
    return is_there;
}

/* Leave the reading of requests to others. False: nobody would be left to do it, stay. */
bool leave_place(struct lane *lane) {
    struct crew *crew = &lane->crew;
    uint32_t others = atomic_fetch_sub(&crew->reading, 1) - 1;
    if (others >= crew->wanted || call_reader(lane) || others > 0) {
        atomic_fetch_add(&crew->waiting, 1);
        return true;
    }
    atomic_fetch_add(&crew->reading, 1);
    return false;
}

void take_place(struct lane *lane) {
    atomic_fetch_sub(&lane->crew.waiting, 1);
    atomic_fetch_add(&lane->crew.reading, 1);
}

/* Wait to be called. Who calls has counted us among those who read. Under crew.mutex. */
static void wait_for_call(struct lane *lane) {
    struct crew *crew = &lane->crew;
    crew->parked++;
    while (!crew->called && !atomic_load(&lane->stop))
        pthread_cond_wait(&crew->turn, &crew->mutex);
    crew->parked--;
    crew->called -= crew->called > 0;
}

/* Park, if more than wanted read requests, and the disk has not been met for a while. */
static void balance(struct reader *self) {
    struct crew *crew = &self->lane->crew;
    if (self->calm <= CALM_REQUESTS || atomic_load_explicit(&crew->reading, memory_order_relaxed) <= crew->wanted)
        return;
    pthread_mutex_lock(&crew->mutex);
    if (atomic_load(&crew->reading) > crew->wanted) {
        atomic_fetch_sub(&crew->reading, 1);
        wait_for_call(self->lane);
    }
    pthread_mutex_unlock(&crew->mutex);
}

/* One request; false at the end of the mount. */
static bool serve(struct reader *self) {
    struct lane *lane = self->lane;
    const struct fuse_in_header *request = (const void *)self->request;
    ssize_t length = read(lane->devices[self->device], self->request, REQUEST_SIZE);
    if (length < 0 && (errno == EINTR || errno == ENOENT || errno == EAGAIN))
        return true; /* ENOENT: the request was taken back while it was read */
    if (length <= 0) { /* ENODEV: unmounted; ECONNABORTED: through /sys/fs/fuse/connections */
        kernel_unmounted(lane);
        return false;
    }
    self->hit.came_ns = precise_ns();
    bool is_read = (size_t)length >= sizeof *request + sizeof(struct fuse_read_in) && request->opcode == FUSE_READ &&
                   request->len == (size_t)length;
    if (!is_read || !serve_read(self, request))
        carry_request(lane, request, (size_t)length, self->device);
    else
        COUNT(lane, requests);
    return true;
}

/* A full table leaves requests in the kernel. */
static void wait_for_room(struct lane *lane) {
    while (atomic_load_explicit(&lane->is_full, memory_order_relaxed) && !atomic_load(&lane->stop))
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
}

static void *reader_loop(void *argument) {
    struct reader *self = argument;
    struct lane *lane = self->lane;
    /*
     * It works for microseconds, and others wait for it: so it goes before them (as root; else this fails, and it is only
     * slower).
     */
    setpriority(PRIO_PROCESS, (id_t)gettid(), READER_NICE);
    pthread_mutex_lock(&lane->crew.mutex);
    wait_for_call(lane);
    pthread_mutex_unlock(&lane->crew.mutex);
    while (!atomic_load(&lane->stop) && serve(self)) {
        wait_for_room(lane);
        self->calm++;
        balance(self);
    }
    call_reader(lane); /* the next one finds the same end */
    return NULL;
}

static void wake_up(int number) {
    (void)number; /* a read of /dev/fuse ends with EINTR */
}

int crew_start(struct lane *lane) {
    struct crew *crew = &lane->crew;
    struct sigaction action = {.sa_handler = wake_up};
    sigaction(SIGRTMIN, &action, NULL);
    crew->most = crew->wanted + WAITING_READERS;
    pthread_mutex_lock(&crew->mutex);
    pthread_mutex_unlock(&crew->mutex);
    bool is_started = true;
    for (uint32_t i = 0; is_started && i < crew->wanted; i++)
        is_started = call_reader(lane);
    return is_started ? 0 : EAGAIN;
}

/* lane.stop is set. False: one waits for a disk that does not answer; it needs what it uses for ever. */
bool crew_stop(struct lane *lane) {
    struct crew *crew = &lane->crew;
    pthread_mutex_lock(&crew->mutex);
    pthread_cond_broadcast(&crew->turn);
    crew->most = 0; /* no more of them */
    uint32_t left = crew->started;
    pthread_mutex_unlock(&crew->mutex);
    for (int tries = STOP_TRIES; left && end_thread(crew->readers[left - 1]->thread, &tries); left--) {
        struct reader *reader = crew->readers[left - 1];
        free(reader->request);
        free(reader->pages);
        free(reader);
    }
    return !left;
}
