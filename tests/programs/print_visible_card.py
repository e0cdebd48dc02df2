"""Prints the name of the GPU that a campaign would use, and how many of them it sees; or None."""

from loadtests.campaign.gpu_memory import find_card

if __name__ == "__main__":
    seen = find_card()
    print(seen and f"{seen.name}, {seen.cards}")
