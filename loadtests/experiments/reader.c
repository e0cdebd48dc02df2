/* The floor: the least that reading streams can cost. A closed loop of USERS streams on one epoll, in C, which stamps nothing and
   understands nothing: it counts events and sends the next request when an answer has ended. `nox -s instrument` compiles it and holds
   the load generator's CPU time for an event against it.

       reader PORT USERS TOKENS SECONDS         prints: events, CPU seconds                                                        */
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

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

int main(int count, char **arguments) {
    if (count != 5) return 2;
    int port = atoi(arguments[1]), users = atoi(arguments[2]), tokens = atoi(arguments[3]);
    double end = now() + atof(arguments[4]);
    char body[200], request[600], data[65536];
    int length = sprintf(body, "{\"model\": \"reader\", \"prompt\": \"baba\", \"max_tokens\": %d, \"stream\": true, \"ignore_eos\": true}", tokens);
    int size = sprintf(request, "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                                "Content-Length: %d\r\n\r\n%s", length, body);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int poll = epoll_create1(0);
    for (int user = 0; user < users; user++) {
        int one = 1, handle = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(handle, (struct sockaddr *)&address, sizeof address)) return 1;
        setsockopt(handle, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        struct epoll_event wanted = {.events = EPOLLIN, .data.fd = handle};
        epoll_ctl(poll, EPOLL_CTL_ADD, handle, &wanted);
        if (send(handle, request, size, 0) != size) return 1;
        usleep(2000000 / users + user * 7919 % 10000); /* spread over the time between two tokens, too: together they would be cheaper */
    }
    long events = 0;
    struct epoll_event ready[512];
    while (now() < end) {
        int found = epoll_wait(poll, ready, 512, 100);
        for (int i = 0; i < found; i++) {
            int handle = ready[i].data.fd;
            ssize_t got = recv(handle, data, sizeof data - 1, MSG_DONTWAIT);
            if (got <= 0) {
                if (got < 0 && errno == EAGAIN) continue;
                return 1;
            }
            data[got] = 0;
            for (char *at = data; (at = strstr(at, "data: {")); at += 7) events++;
            if (got >= 5 && !memcmp(data + got - 5, "0\r\n\r\n", 5) && send(handle, request, size, 0) != size) return 1;
        }
    }
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    printf("%ld %.6f\n", events, used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) * 1e-6);
    return 0;
}
