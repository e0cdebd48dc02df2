/* The floor for reading: the smallest CPU time that reading streams can cost, and the errors of
   their times that the machine alone causes. It runs a closed loop of USERS streams on one epoll
   and parses nothing: it counts events, and sends the next request when a response ends. `nox
   -s instrument` compiles it and compares the load generator with it.

       floor_reader PORT USERS TOKENS SECONDS [FILE]         prints: events, CPU seconds

   The users start one after the other, and their streams are read meanwhile. SECONDS and the
   printed numbers count from the start of the last user. With FILE it also records the kernel's
   stamp of each event. At the end it writes one line of JSON, in the format of requests.jsonl,
   for each request that was sent after the start of the last user and whose response ended;
   `scheduled_s` is the end of the previous response. Times are CLOCK_MONOTONIC, in seconds. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#ifndef CLOCK_TOLERANCE_S
#error "compile this with the constants of loadtests/client/limits.py"
#endif

#define MAX_REQUESTS 100000

struct request {
    double scheduled, sent, *arrived; /* of each event */
    int events, complete;
};

static struct request requests[MAX_REQUESTS];
static int sent_count, awaited[65536]; /* by descriptor, the request whose response it awaits */

/* Whether FILE was given. Without it, nothing is recorded and all requests share one text: the
   floor must not include unnecessary work. */
static int stamping;

static char text[600];
static int size;

static double clock_of(clockid_t which) {
    struct timespec t;
    clock_gettime(which, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void make_request(const char *body, int number) {
    size = sprintf(text,
                   "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                   "Content-Type: application/json\r\nX-Request-Id: 00000000-0000-4000-8000-%012d\r\n"
                   "Content-Length: %d\r\n\r\n%s",
                   number, (int)strlen(body), body);
}

/* Returns whether the whole request could be sent. */
static int send_request(int handle, const char *body, int tokens, double scheduled) {
    if (!stamping) return send(handle, text, size, 0) == size;
    int number = sent_count++;
    if (number == MAX_REQUESTS || handle >= 65536) return 0;
    make_request(body, number);
    double sent = clock_of(CLOCK_MONOTONIC);
    requests[number] = (struct request){.scheduled = scheduled ? scheduled : sent,
                                        .sent = sent,
                                        .arrived = malloc(tokens * sizeof(double))};
    awaited[handle] = number;
    return send(handle, text, size, 0) == size;
}

/* Receives like recv. Sets `arrived` to the time of the kernel's stamp. */
static ssize_t receive_stamped(int handle, char *data, size_t room, double *arrived) {
    char control[64];
    struct iovec part = {.iov_base = data, .iov_len = room};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1,
                             .msg_control = control, .msg_controllen = sizeof control};
    ssize_t got = recvmsg(handle, &message, MSG_DONTWAIT);
    *arrived = clock_of(CLOCK_MONOTONIC);
    struct cmsghdr *first = got > 0 ? CMSG_FIRSTHDR(&message) : NULL;
    if (first) {
        struct timespec stamp;
        double wall;
        do { /* repeats if the process lost its core between the two clocks */
            *arrived = clock_of(CLOCK_MONOTONIC);
            wall = clock_of(CLOCK_REALTIME);
        } while (clock_of(CLOCK_MONOTONIC) - *arrived > CLOCK_TOLERANCE_S);
        memcpy(&stamp, CMSG_DATA(first), sizeof stamp);
        *arrived -= wall - (stamp.tv_sec + stamp.tv_nsec * 1e-9);
    }
    return got;
}

static double cpu_seconds(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return used.ru_utime.tv_sec + used.ru_stime.tv_sec
           + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) * 1e-6;
}

static int write_rows(const char *path, int first) {
    FILE *file = fopen(path, "w");
    if (!file) return 1;
    for (int number = first; number < sent_count; number++) {
        struct request *one = &requests[number];
        if (!one->complete || !one->events) continue;
        fprintf(file,
                "{\"worker\": 0, \"request\": %d, \"error\": null, \"answer\": \"exact\", "
                "\"scheduled_s\": %.9f, \"slot_s\": null, \"sent_s\": %.9f, \"first_s\": %.9f, "
                "\"token_s\": [",
                number, one->scheduled, one->sent, one->arrived[0]);
        for (int i = 0; i < one->events; i++)
            fprintf(file, "%s%.9f", i ? ", " : "", one->arrived[i]);
        fprintf(file, "]}\n");
    }
    return fclose(file) != 0;
}

int main(int count, char **arguments) {
    if (count != 5 && count != 6) return 2;
    int port = atoi(arguments[1]), users = atoi(arguments[2]), tokens = atoi(arguments[3]);
    int one = 1;
    stamping = count == 6;
    double end = 0, next = clock_of(CLOCK_MONOTONIC), before = 0;
    char body[200], data[65536];
    sprintf(body,
            "{\"model\": \"reader\", \"prompt\": \"baba\", \"max_tokens\": %d,"
            " \"stream\": true, \"ignore_eos\": true}",
            tokens);
    make_request(body, 0);
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons(port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int poll = epoll_create1(0);
    long events = 0;
    int user = 0, first = 0;
    struct epoll_event ready[512];
    while (!end || clock_of(CLOCK_MONOTONIC) < end) {
        if (user < users && clock_of(CLOCK_MONOTONIC) >= next) {
            int handle = socket(AF_INET, SOCK_STREAM, 0);
            if (connect(handle, (struct sockaddr *)&address, sizeof address)) return 1;
            setsockopt(handle, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
            if (stamping) setsockopt(handle, SOL_SOCKET, SO_TIMESTAMPNS, &one, sizeof one);
            struct epoll_event wanted = {.events = EPOLLIN, .data.fd = handle};
            epoll_ctl(poll, EPOLL_CTL_ADD, handle, &wanted);
            if (!send_request(handle, body, tokens, 0)) return 1;
            /* Also spread the users over the time between two tokens: reading tokens that arrive
               together would be cheaper. */
            next += 2.0 / users + user * 7919 % 10000 * 1e-6;
            if (++user == users) {
                end = clock_of(CLOCK_MONOTONIC) + atof(arguments[4]);
                events = 0, before = cpu_seconds(), first = sent_count;
            }
        }
        int found = epoll_wait(poll, ready, 512, user < users ? 1 : 100);
        for (int i = 0; i < found; i++) {
            int handle = ready[i].data.fd;
            double arrived = 0;
            ssize_t received =
                stamping ? receive_stamped(handle, data, sizeof data - 1, &arrived)
                         : recv(handle, data, sizeof data - 1, MSG_DONTWAIT);
            if (received <= 0) {
                if (received < 0 && errno == EAGAIN) continue;
                return 1;
            }
            data[received] = 0;
            struct request *request = stamping ? &requests[awaited[handle]] : NULL;
            int ended = received >= 5 && !memcmp(data + received - 5, "0\r\n\r\n", 5);
            if (ended && !send_request(handle, body, tokens, arrived)) return 1;
            for (char *at = data; (at = strstr(at, "data: {")); at += 7) {
                events++;
                if (request && request->events < tokens)
                    request->arrived[request->events++] = arrived;
            }
            if (request) request->complete = ended;
        }
    }
    printf("%ld %.6f\n", events, cpu_seconds() - before);
    return stamping ? write_rows(arguments[5], first) : 0;
}
