"""Routing: which agent a thread goes to. Rules first, then a model that is asked in a closed form, then the default.

    router      [routers.NAME], or a file of rules, checked and made ready
    rules       which rule is the first that matches; conditions, words, subject, language are what it stands on
    question    what the model of the router slot is asked, and how its answer is read
    standing    which stored route still holds
    learned     a router fitted to the user's own log; fitting makes it
    evaluation  how good a router is on labelled prompts
"""
